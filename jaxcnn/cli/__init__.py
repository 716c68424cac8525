"""Command lines: flags, console, progress, interrupts, and the commands."""
