"""The homework with one well-known mistake in it, and what grade must find.

A mutant is (mistake, subject, old text, new text, sizes of the smallest failing case). The sizes
are those of X and of W or of the pool: worked out by hand, what the mistake needs to show.
"""

CONV, BACK, MAX, AVG, NUM = (
    "conv_forward", "conv_backward", "MaxPool2D", "AvgPool2D", "numerical_gradient",
)  # fmt: skip

_PIXEL = "Z[n, f, i, j] += x * W[f, c, ki, kj]"
_TAKE = "x = Xp[n, c, i * stride + ki, j * stride + kj]"
_ADD_DX = "dXp[n, :, top : top + KH, left : left + KW] += W[f] * dZ[n, f, i, j]"
_ADD_DW = "dW[f] += window * dZ[n, f, i, j]"
_CROP = "dX = dXp[:, :, pad : pad + H, pad : pad + Wd]"
_RELU, _SIGMOID = "dZ = dout * (Z > 0)", "dZ = dout * out * (1 - out)"
_TANH = "dZ = dout * (1 - out**2)"
_PLACE = "self.max_indices[n, c, i, j] = a, e"
_MAX_BACK = "dX[n, c, a, e] += dout[n, c, i, j]"
_MEAN = "means[n, c, i, j] = total / (k * k)"
_SPREAD = "spread[n, c, i * s + a, j * s + e] += dout[n, c, i, j] / (k * k)"
_SLOPE = "np.sum((plus - minus) * df) / (2 * h)"
_ONE = (1, 1, 1, 1)

MUTANTS = [
    # ---- conv_forward
    ("no activation", CONV, "out = np.maximum(Z, 0)", "out = Z", _ONE, _ONE),
    ("no activation", CONV, "out = np.tanh(Z)", "out = Z", _ONE, _ONE),
    ("no bias", CONV, "Z[n, f, i, j] += b[f]", "pass", _ONE, _ONE),
    ("no bias", CONV, "Z[n, f, i, j] += b[f]", "Z[n, f, i, j] += C * b[f]",
     (1, 2, 1, 1), (1, 2, 1, 1)),
    ("stride ignored", CONV, _TAKE, "x = Xp[n, c, i + ki, j + kj]", (1, 1, 1, 3), _ONE),
    ("size without + 1", CONV, "- KH) // stride + 1\n    Wo = (Wd + 2 * pad - KW) // stride + 1",
     "- KH) // stride\n    Wo = (Wd + 2 * pad - KW) // stride", _ONE, _ONE),
    ("pad ignored", CONV, "    Z = np.zeros((N, F, Ho, Wo))",
     "    Xp, Ho, Wo = X, (H - KH) // stride + 1, (Wd - KW) // stride + 1\n"
     "    Z = np.zeros((N, F, Ho, Wo))",
     _ONE, _ONE),
    ("flipped kernel", CONV, _PIXEL, "Z[n, f, i, j] += x * W[f, c, KH - 1 - ki, KW - 1 - kj]",
     (1, 1, 1, 2), (1, 1, 1, 2)),
    ("channels mixed up", CONV, _PIXEL, "Z[n, f, i, j] += x * W[f, C - 1 - c, ki, kj]",
     (1, 2, 1, 1), (1, 2, 1, 1)),
    ("channels mixed up", CONV, "for c in range(C):", "for c in range(1):",
     (1, 2, 1, 1), (1, 2, 1, 1)),
    ("integer dtype", CONV, "Z = np.zeros((N, F, Ho, Wo))", "Z = np.zeros((N, F, Ho, Wo), X.dtype)",
     _ONE, _ONE),
    # ---- conv_backward
    ("assigned instead of accumulated", BACK, _ADD_DX, _ADD_DX.replace("+=", "="),
     (1, 1, 1, 3), (1, 1, 1, 2)),
    ("assigned instead of accumulated", BACK, _ADD_DW, _ADD_DW.replace("+=", "="),
     (1, 1, 1, 2), _ONE),
    ("pad not cropped", BACK, _CROP, "dX = dXp", _ONE, _ONE),
    ("pad not cropped", BACK, _CROP, "dX = dXp[:, :, :H, :Wd]", _ONE, _ONE),
    ("pad not cropped", BACK, _CROP, "dX = dXp[:, :, pad:-pad, pad:-pad]", _ONE, _ONE),
    ("activation gradient", BACK, _RELU, "dZ = dout", _ONE, _ONE),
    ("activation gradient", BACK, _RELU, "dZ = dout * (dout > 0)", _ONE, _ONE),
    ("activation gradient", BACK, _SIGMOID, "dZ = dout * Z * (1 - Z)", _ONE, _ONE),
    ("activation gradient", BACK, _SIGMOID,
     "s = 1 / (1 + np.exp(-out)); dZ = dout * s * (1 - s)", _ONE, _ONE),
    ("activation gradient", BACK, _TANH, "dZ = dout * (1 - np.tanh(out) ** 2)", _ONE, _ONE),
    ("activation gradient", BACK, _TANH, "dZ = dout * (1 - Z**2)", _ONE, _ONE),
    ("dout forgotten", BACK, _TANH, "dZ = 1 - out**2", _ONE, _ONE),
    ("stride ignored in backward", BACK, "top, left = i * stride, j * stride", "top, left = i, j",
     (1, 1, 1, 3), _ONE),
    ("flipped kernel", BACK, _ADD_DX, _ADD_DX.replace("W[f]", "W[f, :, ::-1, ::-1]"),
     (1, 1, 1, 2), (1, 1, 1, 2)),
    ("flipped kernel", BACK, _ADD_DW, _ADD_DW.replace("window", "window[:, ::-1, ::-1]"),
     (1, 1, 1, 2), (1, 1, 1, 2)),
    ("channels mixed up", BACK, _ADD_DX, _ADD_DX.replace("W[f]", "W[f, ::-1]"),
     (1, 2, 1, 1), (1, 2, 1, 1)),
    ("not summed over the batch", BACK,
     "        for f in range(F):\n            for i in range(Ho):\n"
     "                for j in range(Wo):\n                    top",
     "        dW[...] = 0\n        for f in range(F):\n            for i in range(Ho):\n"
     "                for j in range(Wo):\n                    top", (2, 1, 1, 1), _ONE),
    ("not summed over the batch", BACK, "    return dX, dW, db",
     "    return dX, dW, dZ.sum((2, 3))", _ONE, _ONE),
    ("bias not summed over pixels", BACK, "    return dX, dW, db", "    return dX, dW, dZ.sum(0)",
     _ONE, _ONE),
    ("bias not summed over pixels", BACK, "db[f] += dZ", "db[f] = dZ", (1, 1, 1, 2), _ONE),
    ("bias before the activation", BACK, "db[f] += dZ", "db[f] += dout", _ONE, _ONE),
    ("mean over the batch", BACK, "    return dX, dW, db", "    return dX, dW / N, db / N",
     (2, 1, 1, 1), _ONE),
    ("mean over the batch", BACK, "    return dX, dW, db", "    return dX, dW, dZ.mean((0, 2, 3))",
     (1, 1, 1, 2), _ONE),
    ("another shape than b", BACK, "    return dX, dW, db", "    return dX, dW, db[:, None]",
     _ONE, _ONE),
    ("another shape than b", BACK, "    return dX, dW, db", "    return dX, dW, db[None]",
     _ONE, _ONE),
    ("rows and columns swapped", BACK, "top, left = i * stride, j * stride",
     "left, top = i * stride, j * stride", (1, 1, 2, 2), _ONE),
    ("integer dtype", BACK, "dXp = np.zeros(Xp.shape)", "dXp = np.zeros_like(Xp)", _ONE, _ONE),
    ("integer dtype", BACK, _CROP, "dX = np.zeros_like(X)\n    dX[...] = " + _CROP[5:],
     _ONE, _ONE),
    # ---- MaxPool2D
    ("assigned instead of accumulated", MAX, _MAX_BACK, _MAX_BACK.replace("+=", "="),
     (1, 1, 2, 3), 2),
    ("maximum starts at 0", MAX, "best = -np.inf", "best = 0", _ONE, 1),
    ("ties", MAX, "> best", ">= best", (1, 1, 2, 2), 2),
    ("ties", MAX, "            a, e = self.max_indices[n, c, i, j]\n            " + _MAX_BACK,
     "            s, k = self.stride, self.pool_size\n"
     "            window = self.X[n, c, i * s : i * s + k, j * s : j * s + k]\n"
     "            part = dX[n, c, i * s : i * s + k, j * s : j * s + k]\n"
     "            part += (window == window.max()) * dout[n, c, i, j]", (1, 1, 2, 2), 2),
    ("position in the window", MAX, _PLACE, "self.max_indices[n, c, i, j] = a - i * s, e - j * s",
     (1, 1, 1, 2), 1),
    ("row and column swapped", MAX, _PLACE, "self.max_indices[n, c, i, j] = e, a", (1, 1, 2, 2), 1),
    ("stride ignored", MAX, "        self.X, self.max_indices = X,",
     "        s = 1\n        self.X, self.max_indices = X,", (1, 1, 1, 3), 1),
    ("integer dtype", MAX, "dX = np.zeros(self.X.shape)", "dX = np.zeros_like(self.X)", _ONE, 1),
    ("dout forgotten", MAX, _MAX_BACK, "dX[n, c, a, e] += 1", _ONE, 1),
    # ---- AvgPool2D
    ("assigned instead of accumulated", AVG, _SPREAD, _SPREAD.replace("+=", "="), (1, 1, 2, 3), 2),
    ("divided wrongly", AVG, _SPREAD, _SPREAD.replace("(k * k)", "k"), (1, 1, 2, 2), 2),
    ("divided wrongly", AVG, _SPREAD, _SPREAD.replace(" / (k * k)", ""), (1, 1, 2, 2), 2),
    ("divided wrongly", AVG, _MEAN, _MEAN.replace("(k * k)", "(s * s)"), (1, 1, 2, 2), 2),
    ("stride ignored in backward", AVG, _SPREAD,
     _SPREAD.replace("i * s + a, j * s + e", "i + a, j + e"), (1, 1, 1, 3), 1),
    ("stride ignored", AVG, "i * s + a, j * s + e]\n            means",
     "i + a, j + e]\n            means",
     (1, 1, 1, 3), 1),
    ("integer dtype", AVG, "means = np.zeros((N, C, Ho, Wo))",
     "means = np.zeros((N, C, Ho, Wo), X.dtype)",
     (1, 1, 2, 2), 2),
    ("integer dtype", AVG, "spread = np.zeros(self.X.shape)",
     "spread = np.zeros_like(self.X)", _ONE, 1),
    # ---- numerical gradient
    ("one-sided difference", NUM, _SLOPE,
     "np.sum((plus - f(x)) * df) / h", (1,), None),
    ("step not doubled", NUM, _SLOPE, _SLOPE.replace("(2 * h)", "h"), (1,), None),
    ("dout forgotten", NUM, _SLOPE, _SLOPE.replace(" * df", ""), (1,), None),
    ("sign", NUM, _SLOPE, _SLOPE.replace("plus - minus", "minus - plus"), (1,), None),
    ("own element only", NUM, _SLOPE, "(plus - minus)[index] * df[index] / (2 * h)", (2,), None),
    ("output not copied", NUM, "f(x).copy()", "f(x)", (1,), None),
]  # fmt: skip
