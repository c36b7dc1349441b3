"""`python -m MedFusionLib`."""

from signal import SIGTERM, default_int_handler, signal

from .cli import main

if __name__ == "__main__":
    # Ended by a scheduler or by `timeout`, it tidies up as after Ctrl+C.
    signal(SIGTERM, default_int_handler)
    main()
