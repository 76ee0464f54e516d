"""The only writer to the network.

In reading order: `cards`, `model_card`, `dataset_card` and `space` write what is pushed; `handler` is a file of model
repositories, which `endpoint` adds; `outbox` keeps all on disk, `connection` talks to the Hub, `repository` pushes and
downloads, and `pusher` does so during a run.
"""
