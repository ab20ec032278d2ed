"""zeroline under the names that other libraries call.

``compat.captum``  Captum's ``IntegratedGradients``, ``LayerIntegratedGradients`` and ``InputXGradient``: their arguments, their values
``compat.quantus`` ``explain_func``, which Quantus' metrics call

What is computed is what ``zl.integrated_gradients`` and the other methods compute; these modules only translate arguments and results, and
neither library is needed. ``compat.callables`` makes a module of the function that Captum takes, ``compat.selected`` is its target.
"""
