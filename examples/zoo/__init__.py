"""Small models of many kinds, trained on real data: `python -m examples.zoo --list`."""
