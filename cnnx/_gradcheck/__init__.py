"""The works of :mod:`cnnx.gradcheck`, which says what they are for.

``subject`` brings layers and functions to one form, ``differences`` measures a slope along a line
and knows kinks, ``comparison`` walks over all elements of all arrays, ``report`` is the result.
"""
