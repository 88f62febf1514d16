"""`python -m app` is `img2img`."""

from app.cli.app import main

if __name__ == "__main__":
    main()
