"""The page at /: one or two models side by side, an image, and the settings of an answer.

Pure layout and wiring, in Gradio; what a click does, a `Visit` knows. Texts are shown as they are,
never as markup. The page asks nothing of other servers.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import gradio as gr
from fastapi import FastAPI

from pipeline.chat.limits import Sampling
from pipeline.chat.model import ChatModel
from pipeline.chat.visit import Visit
from pipeline.config import ChatConfig

_VISIT_SECONDS = 3600  # until what an idle visitor said is forgotten
_FILES = (600, 3600)  # every ten minutes, uploads older than an hour are deleted
_THREADS = 64
_FONTS = ["system-ui", "sans-serif"]

_CSS = """
.gradio-container { max-width: 1360px !important; margin: 0 auto !important; }
#image img { object-fit: contain; }
#status { min-height: 1.6em; }
#status p { margin: 0; }
footer { display: none !important; }
"""
_HEAD = '<meta name="viewport" content="width=device-width, initial-scale=1">'


def mount_page(app: FastAPI, models: Sequence[ChatModel], config: ChatConfig) -> None:
    """Puts the page at / of `app`, behind all routes that it has already."""
    page = build_page(models, config)
    # Each waiting question holds a place; more are refused by the models' desks, in words.
    page.queue(max_size=4 * (config.waiting + 1), default_concurrency_limit=config.waiting + 2)
    page.max_threads = _THREADS
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
        head=_HEAD,
    )


def build_page(models: Sequence[ChatModel], config: ChatConfig) -> gr.Blocks:
    """The page, with a `Visit` for each who opens it."""
    with gr.Blocks(title="EIM chat", analytics_enabled=False, delete_cache=_FILES) as page:
        visit = gr.State(None, time_to_live=_VISIT_SECONDS, delete_callback=_leave)
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
                status = gr.Textbox(
                    show_label=False,
                    container=False,
                    interactive=False,
                    elem_id="status",
                    max_lines=3,
                )
                question = gr.Textbox(
                    placeholder="Ask something; Enter sends",
                    show_label=False,
                    lines=1,
                    max_lines=8,
                    autofocus=True,
                    elem_id="question",
                )
                with gr.Row():
                    send = gr.Button("Send", variant="primary", elem_id="send", min_width=80)
                    stop = gr.Button("Stop", variant="stop", elem_id="stop", min_width=80)
                    retry = gr.Button("Retry", elem_id="retry", min_width=80)
                    clear = gr.Button("Clear", elem_id="clear", min_width=80)

        def open_visit() -> Visit:
            return Visit(models)

        def ask(text: str, here: Visit, *chosen: float) -> Iterator[list[Any]]:
            for asked, said in here.ask(text, _sampling(chosen)):
                yield [asked, *here.messages(), said]

        def ask_again(here: Visit, *chosen: float) -> Iterator[list[Any]]:
            for said in here.retry(_sampling(chosen)):
                yield [*here.messages(), said]

        def show(file: str | None, here: Visit) -> list[Any]:
            shown, said = here.show(None if file is None else Path(file))
            return [shown, *here.messages(), said]

        def empty(here: Visit) -> list[Any]:
            here.clear()
            return [*here.messages(), ""]

        quietly: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
        page.load(open_visit, None, visit, **quietly)
        gr.on(
            [send.click, question.submit],
            ask,
            [question, visit, *settings],
            [question, *talks, status],
            **quietly,
        )
        retry.click(ask_again, [visit, *settings], [*talks, status], **quietly)
        # Outside of the queue: a stop must not wait behind what it stops.
        stop.click(Visit.stop, [visit], None, queue=False, **quietly)
        clear.click(empty, [visit], [*talks, status], queue=False, **quietly)
        upload.upload(show, [upload, visit], [picture, *talks, status], **quietly)
        remove.click(lambda here: show(None, here), [visit], [picture, *talks, status], **quietly)
    return page


def _talk(model: ChatModel, index: int) -> gr.Chatbot:
    return gr.Chatbot(
        label=model.name,
        height=460,
        elem_id=f"talk{index}",
        render_markdown=False,
        buttons=["copy"],
        feedback_options=None,
        placeholder=f"{model.name} is listening",
    )


def _settings(config: ChatConfig) -> list[gr.components.Component]:
    """In the order of `_sampling`."""
    own = Sampling.of(config)
    with gr.Accordion("Settings", open=False, elem_id="settings"):
        return [
            gr.Slider(
                0, 2, own.temperature, step=0.05, label="Temperature", info="0: the likeliest token"
            ),
            gr.Slider(0.05, 1, own.top_p, step=0.05, label="Top-p"),
            gr.Slider(1, own.max_new_tokens, own.max_new_tokens, step=1, label="Tokens, at most"),
            gr.Number(own.seed, precision=0, minimum=0, label="Seed", elem_id="seed"),
        ]


def _sampling(chosen: Sequence[float]) -> Sampling:
    temperature, top_p, length, seed = chosen
    return Sampling(float(temperature), float(top_p), int(length), int(seed or 0))


def _leave(visit: Visit | None) -> None:
    if visit is not None:
        visit.stop()
