"""`python -m deia_hardening.cli` is the command `deia-hardening`."""

from deia_hardening.cli.main import main

if __name__ == "__main__":
    main()
