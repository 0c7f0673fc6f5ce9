"""`python -m friction_kernels`: print the version, the active backends, and why others are inactive."""

from friction_kernels.backends import describe


def main() -> None:
    lines = describe()
    width = max(map(len, lines))
    for name, value in lines.items():
        print(f"{name:<{width}}  {value}")


if __name__ == "__main__":
    main()
