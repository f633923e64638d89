"""Planning: pure computation on what ``observe`` returned, one module per test.

======================  =========================================================
:mod:`.chunks`          orders of the reduction groups, chunk sizes, partial sums
:mod:`.bound`           sound bounds (lossless)
:mod:`.stats`           the paper's z-test
:mod:`.threshold`       the paper's one threshold per site
:mod:`.calibrated`      per-output regression and expected lost energy
:mod:`.low_rank`        estimates of low rank for Gemm sites and heads
:mod:`.allocation`      one price for the whole model
:mod:`.head`            the same tests for ArgMax heads
:mod:`.planner`         which of them a site gets
======================  =========================================================
"""
