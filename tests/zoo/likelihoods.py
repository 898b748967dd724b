"""Negative log-likelihoods: survival, generalised linear models, mixtures, state-space models, Gaussian processes."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.scipy.special import gammaln, log_ndtr, logsumexp, xlogy
from jax.scipy.stats import norm

from gradbench import Problem
from zoo.entries import WIDE, entry, regression, vector, weights


@entry
def cox(generator):
    """Cox's partial likelihood with censoring, risk sets by a reversed cumulative sum of exp, from zeros."""
    x, eta = regression(generator, 60, 8)
    times, censored = generator.exponential(np.exp(-0.3 * eta)), generator.exponential(2.0, 60)
    order = np.argsort(np.minimum(times, censored))

    def loss(w, data):
        x, observed = data
        eta = x @ w
        risk = jnp.cumsum(jnp.exp(eta)[::-1])[::-1]
        return -jnp.sum(observed * (eta - jnp.log(risk))) / jnp.sum(observed) + 0.01 * w @ w

    return Problem(lambda key: jnp.zeros(8), loss, (x[order], (times <= censored)[order].astype(float)))


@entry
def cox_by_masks(generator):
    """Cox's partial likelihood, risk sets by a mask of times and logsumexp."""
    x, eta = regression(generator, 40, 6)
    times, censored = generator.exponential(np.exp(-0.3 * eta)), generator.exponential(2.0, 40)

    def loss(w, data):
        x, time, observed = data
        eta = x @ w
        at_risk = time[None, :] >= time[:, None]
        risk = logsumexp(jnp.where(at_risk, eta[None, :], -jnp.inf), axis=1)
        return jnp.mean(jnp.where(observed, risk - eta, 0.0))

    return Problem(vector(6, 0.3), loss, (x, np.minimum(times, censored), times <= censored))


@entry
def weibull_censored(generator):
    """A Weibull regression with right censoring, shape and scale by logarithms."""
    x, eta = regression(generator, 70, 6)
    times, censored = np.exp(0.3 * eta) * generator.weibull(1.5, 70), generator.exponential(3.0, 70)

    def loss(params, data):
        x, time, observed = data
        log_scale = x @ params["w"] + params["b"]
        shape = jnp.exp(params["log_shape"])
        z = shape * (jnp.log(time) - log_scale)
        log_hazard = params["log_shape"] + z - jnp.log(time)
        return jnp.mean(jnp.exp(z) - observed * log_hazard)

    init = lambda key: {"w": vector(6, 0.2)(key), "b": jnp.zeros(()), "log_shape": jnp.zeros(())}  # noqa: E731
    data = (x, np.minimum(times, censored), (times <= censored).astype(float))
    return Problem(init, loss, data, examples=70)


@entry
def poisson(generator):
    """Poisson regression, mean exp(x w), with the gammaln of the counts kept."""
    x, eta = regression(generator, 80, 8)

    def loss(params, data):
        x, y = data
        eta = x @ params["w"] + params["b"]
        return jnp.mean(jnp.exp(eta) - y * eta + gammaln(y + 1))

    init = lambda key: {"w": vector(8, 0.2)(key), "b": jnp.zeros(())}  # noqa: E731
    return Problem(init, loss, (x, generator.poisson(np.exp(0.5 * eta)).astype(float)), examples=80)


@entry
def poisson_zero_inflated(generator):
    """Zero-inflated Poisson counts: logaddexp where the count is 0, exposure as an offset."""
    x, eta = regression(generator, 80, 6)
    exposure = generator.uniform(0.5, 5, 80)
    y = generator.poisson(exposure * np.exp(0.3 * eta)) * (generator.random(80) < 0.7) * 1.0

    def loss(params, data):
        x, y, exposure = data
        mean = exposure * jnp.exp(x @ params["w"])
        log_zero, log_not = jax.nn.log_sigmoid(params["logit"]), jax.nn.log_sigmoid(-params["logit"])
        at_zero = jnp.logaddexp(log_zero, log_not - mean)
        above = log_not + xlogy(y, mean) - mean - gammaln(y + 1.0)
        return -jnp.mean(jnp.where(y == 0, at_zero, above))

    init = lambda key: {"w": vector(6, 0.2)(key), "logit": jnp.zeros(())}  # noqa: E731
    return Problem(init, loss, (x, y, exposure), examples=80)


@entry
def negative_binomial(generator):
    """Negative binomial regression with its dispersion as a parameter: gammaln, and digamma in the gradient."""
    x, eta = regression(generator, 70, 6)
    y = generator.negative_binomial(2, 1 / (1 + np.exp(0.5 * eta) / 2)).astype(float)

    def loss(params, data):
        x, y = data
        mean, r = jnp.exp(x @ params["w"]), jnp.exp(params["log_r"])
        log_p = gammaln(y + r) - gammaln(r) - gammaln(y + 1)
        return -jnp.mean(log_p + r * jnp.log(r / (r + mean)) + y * jnp.log(mean / (r + mean)))

    init = lambda key: {"w": vector(6, 0.2)(key), "log_r": jnp.zeros(())}  # noqa: E731
    return Problem(init, loss, (x, y), examples=70)


@entry
def gamma_regression(generator):
    """Gamma regression with a log link and its shape as a parameter."""
    x, eta = regression(generator, 70, 6)

    def loss(params, data):
        x, y = data
        eta, shape = x @ params["w"], jax.nn.softplus(params["shape"])
        log_p = shape * jnp.log(shape) - shape * eta + (shape - 1) * jnp.log(y) - shape * y / jnp.exp(eta)
        return jnp.mean(gammaln(shape) - log_p)

    init = lambda key: {"w": vector(6, 0.2)(key), "shape": jnp.ones(())}  # noqa: E731
    return Problem(init, loss, (x, generator.gamma(2.0, np.exp(0.3 * eta) / 2)), examples=70)


@entry
def student_t(generator):
    """A linear model with Student's t noise: scale and degrees of freedom learned."""

    def loss(params, data):
        x, y = data
        scale, nu = jnp.exp(params["log_scale"]), jnp.exp(params["log_nu"])
        z = (y - x @ params["w"]) / scale
        constant = gammaln((nu + 1) / 2) - gammaln(nu / 2) - 0.5 * jnp.log(nu * jnp.pi) - jnp.log(scale)
        return -jnp.mean(constant - (nu + 1) / 2 * jnp.log1p(z**2 / nu))

    init = lambda key: {"w": vector(8)(key), "log_scale": jnp.zeros(()), "log_nu": jnp.float32(1.4)}  # noqa: E731
    return Problem(init, loss, regression(generator, 64, 8), examples=64)


@entry(dtypes=WIDE)
def probit(generator):
    """Probit regression by log_ndtr."""
    x, eta = regression(generator, 80, 8)

    def loss(w, data):
        x, sign = data
        return -jnp.mean(log_ndtr(sign * (x @ w)))

    return Problem(vector(8, 0.5), loss, (x, np.sign(eta)), examples=80)


@entry(dtypes=WIDE)
def tobit(generator):
    """A censored regression: norm.logpdf above 0, norm.logcdf at 0."""
    x, y = regression(generator, 60, 6)

    def loss(params, data):
        x, y = data
        mean, scale = x @ params["w"], jnp.exp(params["log_scale"])
        return -jnp.mean(jnp.where(y > 0, norm.logpdf(y, mean, scale), norm.logcdf(-mean / scale)))

    init = lambda key: {"w": vector(6, 0.5)(key), "log_scale": jnp.zeros(())}  # noqa: E731
    return Problem(init, loss, (x, np.maximum(y, 0)), examples=60)


@entry
def ordinal(generator):
    """Ordinal logistic regression, thresholds by a cumulative sum of softplus."""
    x, y = regression(generator, 60, 6)

    def loss(params, data):
        x, label = data
        cuts = params["first"] + jnp.concatenate([jnp.zeros(1, x.dtype), jnp.cumsum(jax.nn.softplus(params["gaps"]))])
        below = jax.nn.sigmoid(cuts - (x @ params["w"])[:, None])
        below = jnp.pad(below, ((0, 0), (1, 1)), constant_values=((0, 0), (0, 1)))
        p = jnp.diff(below, axis=1)[jnp.arange(len(label)), label]
        return -jnp.mean(jnp.log(p))

    init = lambda key: {"w": vector(6, 0.3)(key), "first": jnp.float32(-1.0), "gaps": jnp.zeros(2)}  # noqa: E731
    return Problem(init, loss, (x, np.digitize(y, [-1, 0, 1])), examples=60)


@entry
def item_response(generator):
    """A two-parameter item response model: discriminations, difficulties, abilities with a normal prior."""
    right = (generator.random((20, 12)) < 0.6).astype(float)

    def loss(params, y):
        logits = jnp.exp(params["log_a"]) * (params["ability"][:, None] - params["difficulty"])
        data_term = jnp.mean(jax.nn.softplus(logits) - y * logits)
        return data_term + 0.5 * jnp.mean(params["ability"] ** 2) / y.shape[1]

    return Problem(weights(3.0, log_a=(12,), ability=(20,), difficulty=(12,)), loss, right)


@entry(dtypes=WIDE)
def gaussian_process(generator):
    """Gaussian process regression: marginal likelihood by a Cholesky factor, one length a feature."""
    x = generator.uniform(-2, 2, (30, 8))
    y = np.sin(x[:, 0]) + 0.5 * x[:, 1] + 0.1 * generator.standard_normal(30)

    def loss(params, data):
        x, y = data
        z = x / jnp.exp(params["log_length"])
        squares = jnp.sum((z[:, None] - z[None]) ** 2, axis=-1)
        kernel = jnp.exp(2 * params["log_scale"] - 0.5 * squares)
        noise = (jnp.exp(2 * params["log_noise"]) + 1e-4) * jnp.eye(len(y), dtype=y.dtype)
        factor = jnp.linalg.cholesky(kernel + noise)
        alpha = jax.scipy.linalg.cho_solve((factor, True), y)
        return (0.5 * y @ alpha + jnp.sum(jnp.log(jnp.diag(factor)))) / len(y)

    def init(key):
        return {"log_length": vector(8, 0.1, 0.7)(key), "log_scale": jnp.zeros(()), "log_noise": jnp.float32(-1.5)}

    return Problem(init, loss, (x, y))


@entry(dtypes=WIDE)
def kalman(generator):
    """The likelihood of a linear Gaussian state-space model by a Kalman filter in a scan, 2 x 2 solves."""
    y = np.cumsum(generator.standard_normal((20, 2)), axis=0)

    def loss(params, y):
        eye = jnp.eye(2, dtype=y.dtype)
        a, q, r = params["a"], jnp.exp(params["log_q"]) * eye, jnp.exp(params["log_r"]) * eye

        def step(state, now):
            mean, cov = a @ state[0], a @ state[1] @ a.T + q
            s, off = cov + r, now - mean
            log_p = -0.5 * (off @ jnp.linalg.solve(s, off) + jnp.linalg.slogdet(s)[1])
            gain = jnp.linalg.solve(s, cov).T
            return (mean + gain @ off, cov - gain @ cov), log_p

        return -jnp.mean(jax.lax.scan(step, (jnp.zeros(2, y.dtype), eye), y)[1])

    def init(key):
        a = 0.9 * jnp.eye(2) + 0.1 * jax.random.normal(key, (2, 2))
        return {"a": a, "log_q": jnp.zeros(2), "log_r": jnp.zeros(2)}

    return Problem(init, loss, y)


@entry
def gaussian_mixture(generator):
    """A mixture of four diagonal Gaussians by logsumexp."""
    x = generator.standard_normal((80, 3)) + 3 * generator.integers(2, size=(80, 1))

    def loss(params, x):
        z = (x[:, None] - params["mean"]) * jnp.exp(-params["log_scale"])
        log_p = -0.5 * jnp.sum(z**2, axis=-1) - jnp.sum(params["log_scale"], axis=-1)
        return -jnp.mean(logsumexp(jax.nn.log_softmax(params["logits"]) + log_p, axis=1))

    return Problem(weights(mean=(4, 3), log_scale=(4, 3), logits=(4,)), loss, x, examples=80)


@entry
def mixture_density_network(generator):
    """A network whose outputs are the weights, means and log-widths of a mixture over y."""
    x = generator.uniform(-1, 1, (50, 1))
    y = np.sin(4 * x[:, 0]) * np.sign(generator.standard_normal(50))

    def loss(params, data):
        x, y = data
        hidden = jnp.tanh(x @ params["w1"] + params["b1"])
        logits, mean, log_scale = jnp.split(hidden @ params["w2"], 3, axis=1)
        log_p = norm.logpdf(y[:, None], mean, jnp.exp(log_scale))
        return -logsumexp(jax.nn.log_softmax(logits) + log_p, axis=1).mean()

    return Problem(weights(w1=(1, 16), b1=(16,), w2=(16, 9)), loss, (x, y), examples=50)


@entry
def hidden_markov(generator):
    """A hidden Markov model of four states by the forward algorithm in a scan, in logarithms."""
    words = generator.integers(6, size=(5, 18))

    def loss(params, words):
        log_a = jax.nn.log_softmax(params["transition"], axis=1)
        log_b = jax.nn.log_softmax(params["emission"], axis=1)

        def forward(sequence):
            def step(alpha, word):
                return logsumexp(alpha[:, None] + log_a, axis=0) + log_b[:, word], None

            alpha = jax.nn.log_softmax(params["first"]) + log_b[:, sequence[0]]
            return logsumexp(lax.scan(step, alpha, sequence[1:])[0])

        return -jnp.mean(jax.vmap(forward)(words)) / words.shape[1]

    return Problem(weights(transition=(4, 4), emission=(4, 6), first=(4,)), loss, words, examples=5)


@entry
def garch(generator):
    """A GARCH(1, 1) model of returns, the variance carried through a scan, for ten assets by vmap."""
    returns = 0.01 * generator.standard_normal((10, 40))

    def loss(params, returns):
        def one(p, r):
            omega, alpha, beta = jnp.exp(p[0]), jax.nn.sigmoid(p[1]), jax.nn.sigmoid(p[2])

            def step(variance, now):
                return omega + alpha * now**2 + beta * variance, jnp.log(variance) + now**2 / variance

            return jnp.mean(lax.scan(step, jnp.mean(r**2), r)[1])

        return jnp.mean(jax.vmap(one)(params, returns))

    init = lambda key: jnp.array([-11.0, -2.0, 1.5]) + 0.1 * jax.random.normal(key, (10, 3))  # noqa: E731
    return Problem(init, loss, returns)


@entry
def paired_comparisons(generator):
    """Bradley and Terry's model of who beats whom, strengths gathered with duplicates."""
    winner, loser = generator.integers(15, size=(2, 90))
    keep = winner != loser

    def loss(strength, data):
        winner, loser = data
        return jnp.mean(jax.nn.softplus(strength[loser] - strength[winner])) + 1e-3 * jnp.sum(strength**2)

    return Problem(vector(15, 0.5), loss, (winner[keep], loser[keep]), examples=int(keep.sum()))
