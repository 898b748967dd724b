"""Simulations and energies: heat, waves, pendulums, orbits, springs, molecules, populations."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from gradbench import Problem
from zoo.entries import entry, vector, weights


@entry
def heat_rod(generator):
    """The conductivity of a rod from its temperatures: explicit finite differences in a scan."""
    start = np.exp(-((np.linspace(-3, 3, 24)) ** 2))

    def loss(log_k, data):
        start, wanted = data
        k = jnp.exp(log_k)

        def step(u, _):
            flux = k * (u[1:] - u[:-1])
            return u.at[1:-1].add(0.2 * (flux[1:] - flux[:-1])), None

        u, _ = lax.scan(step, start, None, length=30)
        return jnp.mean((u - wanted) ** 2)

    wanted = 0.8 * start + 0.05 + 0.01 * generator.standard_normal(24)
    return Problem(vector(23, 0.2), loss, (start, wanted))


@entry
def wave_speed(generator):
    """Wave speeds from a seismogram: a leapfrog scheme that records one point per step."""
    trace = generator.standard_normal(40) * np.exp(-np.arange(40) / 10)

    def loss(c, trace):
        def step(state, t):
            before, now = state
            bend = jnp.roll(now, 1) - 2 * now + jnp.roll(now, -1)
            after = 2 * now - before + 0.25 * c**2 * bend
            after = after.at[3].add(jnp.exp(-(((t - 4.0) / 2) ** 2)).astype(c.dtype))
            return (now, after), after[16]

        zero = jnp.zeros_like(c)
        _, seen = lax.scan(step, (zero, zero), jnp.arange(trace.shape[0]))
        return jnp.mean((seen - trace) ** 2)

    return Problem(vector(20, 0.05, 1.0), loss, trace)


@entry
def pendulum_swing_up(generator):
    """Torques that bring a pendulum upright: semi-implicit Euler in a scan, a cost on the torques."""

    def loss(torque, data):
        def step(state, u):
            angle, speed = state
            speed = speed + 0.05 * (9.81 * jnp.sin(angle) + u)
            angle = angle + 0.05 * speed
            return (angle, speed), 1e-3 * u**2

        (angle, speed), cost = lax.scan(step, (data[0], data[1]), torque)
        return (1 - jnp.cos(angle)) + 0.1 * speed**2 + jnp.sum(cost)

    return Problem(vector(40, 0.5), loss, np.array([np.pi, 0.0]))


@entry
def orbits(generator):
    """First velocities of five bodies under gravity that bring them to given places: velocity Verlet, softened."""
    places = 2 * generator.standard_normal((5, 2))

    def loss(velocity, data):
        places, masses, wanted = data

        def pull(x):
            apart = x[None, :] - x[:, None]
            return jnp.sum(masses[None, :, None] * apart / (jnp.sum(apart**2, -1, keepdims=True) + 0.1) ** 1.5, axis=1)

        def step(i, state):
            x, v, a = state
            x = x + 0.05 * v + 0.5 * 0.05**2 * a
            new = pull(x)
            return x, v + 0.5 * 0.05 * (a + new), new

        x, _, _ = lax.fori_loop(0, 15, step, (places, velocity, pull(places)))
        return jnp.mean(jnp.sum((x - wanted) ** 2, axis=1))

    data = (places, generator.uniform(0.5, 2, 5), places[::-1].copy())
    return Problem(lambda key: jax.random.normal(key, (5, 2)), loss, data)


@entry
def spring_network(generator):
    """The energy of a hanging net of springs with rest lengths: jnp.linalg.norm along its edges."""
    grid = np.stack(np.meshgrid(np.arange(5.0), np.arange(4.0), indexing="ij"), -1).reshape(20, 2)
    i, j = np.array([(a, b) for a in range(20) for b in range(a) if np.linalg.norm(grid[a] - grid[b]) < 1.1]).T

    def loss(x, data):
        i, j = data
        length = jnp.linalg.norm(x[i] - x[j], axis=-1)
        pinned = jnp.sum((x[:4] - jnp.stack([jnp.zeros(4, x.dtype), jnp.arange(4, dtype=x.dtype)], -1)) ** 2)
        return 50 * jnp.sum((length - 1) ** 2) + 9.81 * 0.1 * jnp.sum(x[:, 1]) + 500 * pinned

    def init(key):
        return jnp.asarray(grid, jnp.float32) + 0.1 * jax.random.normal(key, (20, 2))

    return Problem(init, loss, (i, j))


@entry
def lennard_jones(generator):
    """The energy of thirteen atoms by inverse powers 12 and 6 of the distances, below zero."""
    lattice = 1.2 * np.stack(np.meshgrid([0, 1, 2], [0, 1, 2], [0, 1], indexing="ij"), -1).reshape(18, 3)[:13]

    def loss(x, data):
        i, j = data
        inverse = 1 / jnp.sum((x[i] - x[j]) ** 2, axis=-1)
        return jnp.sum(4 * (inverse**6 - inverse**3)) / x.shape[0]

    def init(key):
        return jnp.asarray(lattice, jnp.float32) + 0.03 * jax.random.normal(key, (13, 3))

    return Problem(init, loss, np.triu_indices(13, 1))


@entry
def predator_and_prey(generator):
    """Rates of Lotka and Volterra for six ponds at once from noisy counts: Heun steps in a scan, logarithms fitted."""
    counts = np.exp(0.3 * generator.standard_normal((12, 6, 2)))

    def loss(log_rates, counts):
        a, b, c, d = jnp.exp(log_rates)

        def field(state):
            prey, predator = state[:, 0], state[:, 1]
            return jnp.stack([a * prey - b * prey * predator, d * prey * predator - c * predator], axis=-1)

        def step(state, _):
            k1 = field(state)
            state = state + 0.05 * (k1 + field(state + 0.1 * k1))
            return state, state

        _, path = lax.scan(step, counts[0], None, length=counts.shape[0] - 1)
        return jnp.mean((jnp.log(path) - jnp.log(counts[1:])) ** 2)

    return Problem(lambda key: 0.2 * jax.random.normal(key, (4, 6)), loss, counts)


@entry
def epidemic(generator):
    """Weekly contact rates of an epidemic from case counts: compartments in a scan, Poisson likelihood."""
    cases = generator.poisson(50 * np.exp(-(((np.arange(12) - 6) / 3) ** 2)) + 2).astype(float)

    def loss(log_beta, cases):
        def step(state, beta):
            s, i = state
            new = s * (1 - jnp.exp(-beta * i / 1000))
            return (s - new, 0.6 * i + new), new

        start = (jnp.asarray(990.0, cases.dtype), jnp.asarray(10.0, cases.dtype))
        _, expected = lax.scan(step, start, jnp.exp(log_beta))
        return jnp.mean(expected - cases * jnp.log(expected))

    return Problem(vector(12, 0.2, -0.3), loss, cases)


@entry
def phase_field(generator):
    """The Ginzburg-Landau energy of a field on a ring: a double well and a squared difference."""

    def loss(u, data):
        return jnp.mean(0.25 * (1 - u**2) ** 2 + 2.0 * (jnp.roll(u, -1) - u) ** 2)

    return Problem(vector(64, 0.5), loss)


@entry
def informed_network(generator):
    """A physics-informed network for y'' = -y: the network's second derivative inside the loss."""

    def loss(params, x):
        def y(t):
            return jnp.tanh(t * params["w1"] + params["b1"]) @ params["w2"]

        second = jax.vmap(jax.grad(jax.grad(y)))(x)
        ends = (y(x[0]) - 0.0) ** 2 + (jax.grad(y)(x[0]) - 1.0) ** 2
        return jnp.mean((second + jax.vmap(y)(x)) ** 2) + ends

    return Problem(weights(2.0, w1=(12,), b1=(12,), w2=(12,)), loss, np.linspace(0, 3, 20))
