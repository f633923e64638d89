"""Pages and pictures that are made from the sources while the documentation is built."""
