"""Hessian-vector products: is each the derivative of the gradient, and is it computed as it is written?"""
