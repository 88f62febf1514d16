"""The command `img2img`, also as `python -m app`."""

import sys


def main() -> None:
    """Run the command line; exits with 1 and says what to install where only the client is."""
    try:
        from app.cli.app import main as run
    except ModuleNotFoundError as error:
        sys.exit(
            f"The command img2img needs the module {error.name}, which is not installed. "
            "Install this package again with the extra server, in its checkout: pip install '.[server]'"
        )
    run()


if __name__ == "__main__":
    main()
