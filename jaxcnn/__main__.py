"""`python -m jaxcnn`."""

from jaxcnn.cli.tools import main

if __name__ == "__main__":
    main()
