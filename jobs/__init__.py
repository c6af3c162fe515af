"""The jobs on Ray: scan a corpus, train a model; and the `asap` command."""
