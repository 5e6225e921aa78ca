"""What the emulator answers, one module per area of the Machines API."""
