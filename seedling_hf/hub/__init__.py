"""The only writer to the network.

In reading order: `cards`, `model_card`, `dataset_card`, `space` and `static_space` write what is pushed, the last with
`onnxruntime_web` from npm; `handler` is a file of model repositories, which `endpoint` adds; `outbox` keeps all on
disk, `connection` talks to the Hub, `repository` pushes and downloads, and `pusher` does so during a run.
"""
