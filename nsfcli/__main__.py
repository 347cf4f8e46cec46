"""`python -m nsfcli`, for launchers such as torchrun."""

from nsfcli.app import main

main()
