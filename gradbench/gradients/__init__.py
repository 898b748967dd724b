"""The gradient check: is the gradient right, on this device, in this dtype, in this program?

oracle   float64, op by op            formula    the derivative against differences and other methods
rounding the error model of primitives interpreter, band  how far rounding alone may take each number
programs the ways to compute it       judge, execution    each against the oracle within the band
functions any function of arrays, against a reference
faults   planted ones                 self_test  how many are caught, and how many false alarms
"""

from gradbench.gradients.check import assert_gradient, check_gradient
from gradbench.gradients.functions.check import assert_function, check_function
from gradbench.gradients.functions.report import FunctionReport
from gradbench.gradients.report import CheckReport

__all__ = ["CheckReport", "FunctionReport", "assert_function", "assert_gradient", "check_function", "check_gradient"]
