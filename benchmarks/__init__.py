"""Measurements: `suite` is what a release must not lose, `experiments` are decisions taken, `results` their figures.

Run a script from the repository's root, as `python -m benchmarks.suite.quality --help`. It writes its figures to
`benchmarks/results/`; `python -m benchmarks.render` puts them into the pages.
"""
