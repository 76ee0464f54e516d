"""The only writer to the network.

In reading order: `cards` and `model_card`, `dataset_card`, `space` say what is pushed; `outbox` keeps it on the disk,
`repository` sends and fetches, `pusher` does so beside a run.
"""
