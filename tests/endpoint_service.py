"""What Hugging Face Inference Endpoints does around a handler, in a process that cannot import `seedling_hf`.

After the source of huggingface-inference-toolkit, which is in no registry: how a handler is found and made
(`check_and_register_custom_pipeline_from_directory`), what becomes of a body (`serialization/`), and the routes and
status codes of `webservice_starlette.py`. As a program: `endpoint_service.py FOLDER PORT TASK`.
"""

import base64
import importlib.util
import json
import sys
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

IMAGE_TYPES = {"image/png", "image/jpeg", "image/jpg", "image/tiff", "image/bmp", "image/gif", "image/webp"}


class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "seedling_hf":
            raise ModuleNotFoundError("No module named 'seedling_hf'", name=name)


def load_handler(folder: str) -> Any:
    path = Path(folder, "handler.py")
    spec = importlib.util.spec_from_file_location("handler.EndpointHandler", path)
    sys.path.insert(0, folder)
    module = importlib.util.module_from_spec(spec)
    sys.modules["handler.EndpointHandler"] = module
    spec.loader.exec_module(module)
    return module.EndpointHandler(folder)


def read_body(content_type: str, body: bytes, task: str) -> dict[str, Any]:
    """An image becomes Pillow's, JSON stays as it is; only for a known task text in it becomes images too."""
    media_type = content_type.split(";")[0].strip().lower()
    if media_type in IMAGE_TYPES or (media_type == "application/octet-stream" and "image" in task):
        return {"inputs": decode(body)}
    if media_type != "application/json":
        raise ValueError(f'Content type "{content_type}" not supported.')
    data = json.loads(body)
    if "inputs" not in data:
        raise ValueError("Body needs to provide a inputs key")
    return data | {"inputs": decode_text(data["inputs"])} if task == "image-classification" else data


def decode(content: bytes) -> Image.Image:
    return Image.open(BytesIO(content)).convert("RGB")


def decode_text(value: Any) -> Any:
    if isinstance(value, list):
        return [decode_text(each) for each in value]
    return decode(base64.b64decode(value, validate=True)) if isinstance(value, str) else value


def build_app(handler: Any, task: str) -> Any:
    from starlette.applications import Starlette
    from starlette.responses import PlainTextResponse, Response
    from starlette.routing import Route

    async def health(request):
        return PlainTextResponse("Ok")

    async def predict(request):
        try:
            data = read_body(request.headers.get("content-type", ""), await request.body(), task)
            if request.query_params and "parameters" not in data:
                values = dict(request.query_params)
                data["parameters"] = {k: int(v) if v.isnumeric() else v for k, v in values.items()}
            return Response(json.dumps(handler(data)), media_type="application/json")
        except Exception as error:
            return Response(json.dumps({"error": str(error)}), status_code=400, media_type="application/json")

    return Starlette(routes=[Route("/", health, methods=["GET"]), Route("/", predict, methods=["POST"])])


if __name__ == "__main__":
    import uvicorn

    sys.meta_path.insert(0, Blocker())
    folder, port, task = sys.argv[1:]
    uvicorn.run(build_app(load_handler(folder), task), host="127.0.0.1", port=int(port), log_level="warning")
