"""What configurations and command lines share: modules of the user's."""
