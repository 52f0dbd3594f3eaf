"""Measures quality, speed and cost. `suite` runs before each release, `experiments` justify decisions.

Run a script from the repository's root, such as `python -m benchmarks.suite.quality --help`. It writes its figures to
`benchmarks/results/`; `python -m benchmarks.render` puts them into the pages.
"""
