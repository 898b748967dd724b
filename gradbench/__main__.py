from gradbench.cli.main import main

main()
