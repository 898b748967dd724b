"""Does each program on this device compute the gradient and the loss that it should?"""
