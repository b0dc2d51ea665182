"""What the subcommands of ``rtrl-ext`` do; ``rtrl_ext.cli`` parses their arguments."""
