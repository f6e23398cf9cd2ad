"""What can be asked of the gateway, one file for each noun."""
