"""Wall-clock benchmark: what runs a ReLU model or a large head fastest on a CPU, and how exactly.

    python -m benchmarks.latency                    # every case, one thread and then two
    python -m benchmarks.latency --case head-50k    # some
    python -m benchmarks.latency --quick            # small sizes, a check that it runs

Contenders of a case run in turn in one process, so each finds its weights as cold as the others
left them. A speed-up is the median over the turns of dense time by own time.
"""
