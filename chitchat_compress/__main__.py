"""`python -m chitchat_compress`: the command line without its console script, as `accelerate launch -m` needs it."""

from chitchat_compress.cli.app import main

if __name__ == "__main__":
    main()
