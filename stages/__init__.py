"""What is computed: one module per stage, importable and silent. The command line around it lives in `nsfcli`."""
