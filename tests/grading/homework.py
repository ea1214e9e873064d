"""A homework as a good student hands it in: plain loops. The tests put mistakes into its lines."""

import numpy as np


def conv_forward(X, W, b, stride=1, pad=0, activation="relu"):
    N, C, H, Wd = X.shape
    F, _, KH, KW = W.shape
    Xp = np.pad(X, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    Ho = (H + 2 * pad - KH) // stride + 1
    Wo = (Wd + 2 * pad - KW) // stride + 1
    Z = np.zeros((N, F, Ho, Wo))
    for n in range(N):
        for f in range(F):
            for i in range(Ho):
                for j in range(Wo):
                    for c in range(C):
                        for ki in range(KH):
                            for kj in range(KW):
                                x = Xp[n, c, i * stride + ki, j * stride + kj]
                                Z[n, f, i, j] += x * W[f, c, ki, kj]
                    Z[n, f, i, j] += b[f]
    if activation == "relu":
        out = np.maximum(Z, 0)
    elif activation == "sigmoid":
        out = 1 / (1 + np.exp(-Z))
    elif activation == "tanh":
        out = np.tanh(Z)
    else:
        out = Z
    return out, (X, W, b, stride, pad, activation, Z, out)


def conv_backward(dout, cache):
    X, W, b, stride, pad, activation, Z, out = cache
    N, _, H, Wd = X.shape
    F, _, KH, KW = W.shape
    _, _, Ho, Wo = dout.shape
    if activation == "relu":
        dZ = dout * (Z > 0)
    elif activation == "sigmoid":
        dZ = dout * out * (1 - out)
    elif activation == "tanh":
        dZ = dout * (1 - out**2)
    else:
        dZ = dout
    Xp = np.pad(X, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    dXp = np.zeros(Xp.shape)
    dW = np.zeros(W.shape)
    db = np.zeros(b.shape)
    for n in range(N):
        for f in range(F):
            for i in range(Ho):
                for j in range(Wo):
                    top, left = i * stride, j * stride
                    window = Xp[n, :, top : top + KH, left : left + KW]
                    dXp[n, :, top : top + KH, left : left + KW] += W[f] * dZ[n, f, i, j]
                    dW[f] += window * dZ[n, f, i, j]
                    db[f] += dZ[n, f, i, j]
    dX = dXp[:, :, pad : pad + H, pad : pad + Wd]
    return dX, dW, db


class MaxPool2D:
    def __init__(self, pool_size=2, stride=2):
        self.pool_size, self.stride = pool_size, stride

    def forward(self, X):
        N, C, H, W = X.shape
        k, s = self.pool_size, self.stride
        Ho, Wo = (H - k) // s + 1, (W - k) // s + 1
        out = np.zeros((N, C, Ho, Wo))
        self.X, self.max_indices = X, np.zeros((N, C, Ho, Wo, 2), int)
        for n in range(N):
            for c in range(C):
                for i in range(Ho):
                    for j in range(Wo):
                        best = -np.inf
                        for a in range(i * s, i * s + k):
                            for e in range(j * s, j * s + k):
                                if X[n, c, a, e] > best:
                                    best = X[n, c, a, e]
                                    self.max_indices[n, c, i, j] = a, e
                        out[n, c, i, j] = best
        return out

    def backward(self, dout):
        dX = np.zeros(self.X.shape)
        for n, c, i, j in np.ndindex(dout.shape):
            a, e = self.max_indices[n, c, i, j]
            dX[n, c, a, e] += dout[n, c, i, j]
        return dX


class AvgPool2D:
    def __init__(self, pool_size=2, stride=2):
        self.pool_size, self.stride = pool_size, stride

    def forward(self, X):
        N, C, H, W = X.shape
        k, s = self.pool_size, self.stride
        Ho, Wo = (H - k) // s + 1, (W - k) // s + 1
        means = np.zeros((N, C, Ho, Wo))
        self.X = X
        for n, c, i, j in np.ndindex(means.shape):
            total = 0
            for a in range(k):
                for e in range(k):
                    total += X[n, c, i * s + a, j * s + e]
            means[n, c, i, j] = total / (k * k)
        return means

    def backward(self, dout):
        k, s = self.pool_size, self.stride
        spread = np.zeros(self.X.shape)
        for n, c, i, j in np.ndindex(dout.shape):
            for a in range(k):
                for e in range(k):
                    spread[n, c, i * s + a, j * s + e] += dout[n, c, i, j] / (k * k)
        return spread


def eval_numerical_gradient(f, x, df, h=1e-5):
    gradient = np.zeros_like(x)
    for index in np.ndindex(x.shape):
        old = x[index]
        x[index] = old + h
        plus = f(x).copy()
        x[index] = old - h
        minus = f(x).copy()
        x[index] = old
        gradient[index] = np.sum((plus - minus) * df) / (2 * h)
    return gradient
