from gradbench.cli import main

main()
