"""`python -m capt_local` is the same as `capt-local`."""

from capt_local.cli.app import main

if __name__ == "__main__":
    main()
