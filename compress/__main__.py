"""`python -m compress`: the front door without its console script, as `accelerate launch -m compress` needs it."""

from compress.cli import main

if __name__ == "__main__":
    main()
