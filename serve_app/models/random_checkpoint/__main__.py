"""`python -m serve_app.models.random_checkpoint`."""

from serve_app.models.random_checkpoint.write import main

main()
