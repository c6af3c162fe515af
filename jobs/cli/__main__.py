"""The command line as a module, for an interpreter that is named: `python -m jobs.cli`."""

from jobs.cli.app import main

if __name__ == "__main__":
    main()
