"""End-to-end load tests over HTTP: `python -m load_tests --help`, metrics defined in README.md."""
