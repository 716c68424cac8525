"""`python -m jaxcnn`."""

from jaxcnn.commands import main

if __name__ == "__main__":
    main()
