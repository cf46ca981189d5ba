"""Settings of every kind of diffusion process and of sampler, by a short name."""

from typing import Any

TIMESTEPS = {"kind": "ddpm", "timesteps": 20, "schedule": "cosine"}
PROCESSES: dict[str, dict[str, Any]] = {
    "edm": {},
    "uncertainty": {"learned_uncertainty": True},
    "ddpm": {"parametrisation": "eps", "levels": TIMESTEPS, "time_input": "timestep"},
    "ddpm-learned": {"parametrisation": "eps", "levels": TIMESTEPS, "learned_variance": True},
    "v-min-snr": {"parametrisation": "v", "levels": TIMESTEPS, "weighting": "min_snr"},
    "flow": {"parametrisation": "flow", "levels": {"kind": "logit_normal"}, "time_input": "flow_time"},
    "x0-flow": {
        "parametrisation": "x0_flow",
        "levels": {"kind": "uniform_flow"},
        "time_input": "none",
        "noise": "uniform",
    },
    "ve": {"levels": {"kind": "geometric", "sigma_min": 0.01, "sigma_max": 50.0}},
    "ve-exponential": {"levels": {"kind": "exponential"}},
}
SAMPLERS: dict[str, dict[str, Any]] = {
    "euler": {"kind": "euler"},
    "heun-churn": {"kind": "heun", "churn": {"amount": 10.0}},
    "ddim": {"kind": "ddim", "eta": 0.5},
    "ddpm": {"kind": "ddpm"},
    "dpmpp_2m": {"kind": "dpmpp_2m"},
    "dpmpp_2m_sde": {"kind": "dpmpp_2m_sde"},
    "unipc": {"kind": "unipc"},
    "langevin": {"kind": "langevin"},
    "guided": {"kind": "heun", "guidance": {"scale": 3.0, "rescale": 0.5, "interval": [0.1, 10.0]}, "clip": 1.0},
}
