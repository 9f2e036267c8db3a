"""Speed and memory, measured by hand, with threads that wait as the program's own do."""

from trarctl.processors import prepare_environment

prepare_environment()  # before torch is loaded
