"""Where a run happens: devices, what is kept compiled, what is written down of the machine."""
