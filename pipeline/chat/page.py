"""The page at /: one or two models side by side, an image, and the settings of an answer.

Pure layout and wiring, in Gradio; what a click does, a `Visit` knows. Texts are shown as they are,
never as markup. The page asks nothing of other servers.
"""

import html
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import gradio as gr
from fastapi import FastAPI

from pipeline.chat.limits import Sampling
from pipeline.chat.model import ChatModel
from pipeline.chat.visit import Visit
from pipeline.config import ChatConfig
from pipeline.data.conversations import Message

_VISITORS = 500  # whose conversations are remembered; those who came first are forgotten first
_FILES = (600, 3600)  # every ten minutes, uploads older than an hour are deleted
_THREADS = 64
_FONTS = ["system-ui", "sans-serif"]

# Of every event: no spinner over the texts, and no way in but the page.
_QUIETLY: Mapping[str, Any] = MappingProxyType(
    {"show_progress": "hidden", "api_visibility": "private"}
)
_CSS = """
.gradio-container { width: 100%; max-width: 1360px !important; margin: 0 auto !important; }
#image img { object-fit: contain; }
.message-content .md { white-space: pre-wrap; }
#status, #status * { border: none !important; box-shadow: none !important; }
#status textarea { background: none !important; padding: 0 4px; }
footer { display: none !important; }
"""
_HEAD = """<meta name="viewport" content="width=device-width, initial-scale=1">
<script>
// The server refuses such a file too, but Gradio's button would not say so.
document.addEventListener("change", (event) => {
  const file = event.target.files?.[0];
  if (!file || file.size <= LIMIT) return;
  event.stopImmediatePropagation();
  event.target.value = "";
  alert(`The image cannot be used: ${file.size} bytes, more than LIMIT. Choose a smaller file.`);
}, true);
</script>"""


def mount_page(app: FastAPI, models: Sequence[ChatModel], config: ChatConfig) -> None:
    """Puts the page at / of `app`, behind all routes that it has already."""
    page = build_page(models, config)
    # Each waiting question holds a place; more are refused by the models' desks, in words.
    page.queue(max_size=4 * (config.waiting + 1), default_concurrency_limit=config.waiting + 2)
    page.max_threads = _THREADS
    page.state_session_capacity = _VISITORS
    gr.mount_gradio_app(
        app,
        page,
        path="",
        server_name=config.host,
        server_port=config.port,
        footer_links=[],
        max_file_size=config.max_image_bytes,
        show_error=True,
        ssr_mode=False,
        theme=gr.themes.Default(font=_FONTS, font_mono=["ui-monospace", "monospace"]),
        css=_CSS,
        head=_HEAD.replace("LIMIT", str(config.max_image_bytes)),
    )


@dataclass(frozen=True)
class _Parts:
    """What a page is made of. settings: in the order of `_sampling`."""

    visit: gr.State
    picture: gr.Image
    upload: gr.UploadButton
    remove: gr.Button
    settings: list[gr.components.Component]
    talks: list[gr.Chatbot]
    status: gr.Textbox
    question: gr.Textbox
    send: gr.Button
    stop: gr.Button
    retry: gr.Button
    clear: gr.Button


def build_page(models: Sequence[ChatModel], config: ChatConfig) -> gr.Blocks:
    """The page, with a `Visit` for each who opens it."""
    page: gr.Blocks = gr.Blocks(title="EIM chat", analytics_enabled=False, delete_cache=_FILES)
    with page:
        parts = _layout(models, config)
        # Until then there is nobody who could ask.
        ready = [gr.update(interactive=True)] * 2
        outputs = [parts.visit, parts.question, parts.send]
        page.load(lambda: [Visit(models), *ready], None, outputs, **_QUIETLY)
        _wire(parts)
    return page


def _layout(models: Sequence[ChatModel], config: ChatConfig) -> _Parts:
    visit = gr.State(None, delete_callback=_stop)
    gr.Markdown("## EIM chat")
    with gr.Row():
        with gr.Column(scale=1, min_width=260):
            picture = gr.Image(
                label="Image", interactive=False, elem_id="image", height=220, buttons=[]
            )
            with gr.Row():
                upload = gr.UploadButton("Choose an image", elem_id="upload", size="sm")
                remove = gr.Button("Remove it", elem_id="remove", size="sm")
            settings = _settings(config)
        with gr.Column(scale=3, min_width=320):
            with gr.Row():
                talks = [_talk(each, index) for index, each in enumerate(models)]
            plain: dict[str, Any] = {"show_label": False, "container": False}
            status = gr.Textbox(
                label="Remarks", interactive=False, max_lines=3, elem_id="status", **plain
            )
            question = gr.Textbox(
                label="Question",
                placeholder="Ask something; Enter sends",
                max_lines=8,
                interactive=False,
                elem_id="question",
                **plain,
            )
            with gr.Row():
                send = gr.Button(
                    "Send", variant="primary", elem_id="send", min_width=70, interactive=False
                )
                stop = gr.Button("Stop", variant="stop", elem_id="stop", min_width=70)
                retry = gr.Button("Retry", elem_id="retry", min_width=70)
                clear = gr.Button("Clear", elem_id="clear", min_width=70)
    return _Parts(
        visit,
        picture,
        upload,
        remove,
        settings,
        talks,
        status,
        question,
        send,
        stop,
        retry,
        clear,
    )


def _wire(parts: _Parts) -> None:
    here, said = parts.visit, [*parts.talks, parts.status]
    gr.on(
        [parts.send.click, parts.question.submit],
        _ask,
        [parts.question, here, *parts.settings],
        [parts.question, *said],
        **_QUIETLY,
    )
    parts.retry.click(_retry, [here, *parts.settings], said, **_QUIETLY)
    # Outside of the queue: a stop must not wait behind what it stops.
    parts.stop.click(_stop, [here], None, queue=False, **_QUIETLY)
    cleared = [parts.clear.click, *(each.clear for each in parts.talks)]
    gr.on(cleared, _clear, [here], said, queue=False, **_QUIETLY)
    parts.upload.upload(_show, [parts.upload, here], [parts.picture, *said], **_QUIETLY)
    parts.remove.click(_remove, [here], [parts.picture, *said], **_QUIETLY)


def _ask(text: str, visit: Visit | None, *chosen: float) -> Iterator[list[Any]]:
    here = _known(visit)
    for left, said in here.ask(text, _sampling(chosen)):
        yield [gr.skip() if left is None else left, *_shown(here), said]


def _retry(visit: Visit | None, *chosen: float) -> Iterator[list[Any]]:
    here = _known(visit)
    for said in here.retry(_sampling(chosen)):
        yield [*_shown(here), said]


def _show(file: str | None, visit: Visit | None) -> list[Any]:
    here = _known(visit)
    shown, said = here.show(None if file is None else Path(file))
    return [shown, *_shown(here), said]


def _remove(visit: Visit | None) -> list[Any]:
    return _show(None, visit)


def _clear(visit: Visit | None) -> list[Any]:
    here = _known(visit)
    here.clear()
    return [*_shown(here), ""]


def _stop(visit: Visit | None) -> None:
    if visit is not None:
        visit.stop()


def _shown(visit: Visit) -> list[list[Message]]:
    """The conversations by model. Gradio takes texts for HTML even where it renders no Markdown."""
    return [
        [{**each, "content": _as_html(each["content"])} for each in messages]
        for messages in visit.messages()
    ]


def _as_html(text: str) -> str:
    # Gradio dedents texts of several lines and widens tabs; so it gets one line without any.
    return html.escape(text, quote=False).replace("\n", "&#10;").replace("\t", "&#9;")


def _known(visit: Visit | None) -> Visit:
    if visit is None:
        raise gr.Error("This page's conversation is no longer known here; load the page again.")
    return visit


def _talk(model: ChatModel, index: int) -> gr.Chatbot:
    return gr.Chatbot(
        label=model.name,
        height=420,
        min_width=280,
        elem_id=f"talk{index}",
        render_markdown=False,
        latex_delimiters=[],  # else it is rendered all the same
        buttons=[],  # Gradio's copy button would copy the escapes of `_shown`
        feedback_options=None,
        placeholder=f"{model.name} is listening",
    )


def _settings(config: ChatConfig) -> list[gr.components.Component]:
    """In the order of `_sampling`."""
    own = Sampling.of(config)
    with gr.Accordion("Settings", open=False, elem_id="settings"):
        return [
            gr.Slider(
                0,
                max(2, own.temperature),
                own.temperature,
                step=0.05,
                label="Temperature",
                info="0: the likeliest token",
            ),
            gr.Slider(min(0.05, own.top_p), 1, own.top_p, step=0.05, label="Top-p"),
            gr.Slider(1, own.max_new_tokens, own.max_new_tokens, step=1, label="Tokens, at most"),
            gr.Number(own.seed, precision=0, minimum=0, label="Seed", elem_id="seed"),
        ]


def _sampling(chosen: Sequence[float]) -> Sampling:
    temperature, top_p, length, seed = chosen
    return Sampling(float(temperature), float(top_p), int(length), int(seed or 0))
