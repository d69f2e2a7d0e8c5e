"""`python -m ptft_lightning COMMAND`."""

from ptft_lightning.cli import main

if __name__ == "__main__":
    main()
