"""The console's process: both pages behind a door that lets in this machine's browser only.

Nothing may load from another host: fonts are the system's, analytics are off, and the browser is told so as well (a
picture in a model's Markdown would be a request).
"""

import os

# Read by gradio when it is imported: it would ask its own host whether there is a newer version.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

import re
from urllib.parse import urlsplit

import gradio as gr
import uvicorn
from fastapi import FastAPI
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.console import circle, compare, export, intervals, lineage
from serve.console.calls import Calls
from serve.console.chat import ChatPage
from serve.console.compare import ComparePage
from serve.console.operate import OperatePage
from serve.console.settings import ConsoleSettings
from serve.console.votes import VotesPage
from serve.keyring import LOCAL_NAMES

POLICY = "; ".join(
    [
        "default-src 'self'",
        # Inline is gradio's configuration, eval are Vega's compiled plots.
        "script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:",
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data: blob:",
        "font-src 'self' data:",
        "worker-src 'self' blob:",
        "object-src 'none'",
        "form-action 'self'",
        "frame-ancestors 'none'",
    ]
)

CSS = """
.heed-alert { border-left: 4px solid var(--error-border-color, #d33); padding: 0.5em 1em; }
.heed-alert .heed-alert { border: none; padding: 0; }
.heed-said { min-height: 1.5em; }
.message p:only-child > code:only-child { font-size: 0.8em; background: none; border: none; padding: 0; }
.heed-row { align-items: end; }
.heed-unseen { position: absolute !important; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
footer { display: none !important; }
"""

STREAMS = 40
"""Answers at the same time in all browsers; gradio's default is one."""


class Door:
    """ASGI middleware: refuses what a page from elsewhere could send here, for the operator's key is here."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        host, origin = headers.get("host", ""), headers.get("origin")
        if _name(host) not in LOCAL_NAMES or (origin is not None and urlsplit(origin).netloc != host):
            words = "The console answers to this machine's browser only, at http://127.0.0.1 and its port."
            await PlainTextResponse(words, 403)(scope, receive, send)
            return

        async def send_with_policy(message: Message) -> None:
            if message["type"] == "http.response.start":
                told = MutableHeaders(scope=message)
                told["content-security-policy"] = POLICY
                # Not "no-referrer": with it a form of the page itself comes from the origin "null".
                told["referrer-policy"] = "same-origin"
            await send(message)

        await self._app(scope, receive, send_with_policy)


def _name(host: str) -> str:
    return re.sub(r":\d+$", "", host).lower()


def create_app(settings: ConsoleSettings) -> FastAPI:
    calls = Calls(settings)
    with gr.Blocks(title="Heed", fill_width=True) as pages:
        gr.Navbar(main_page_name="Chat")
        ChatPage(calls, pages)
    with pages.route("Your votes", "/votes"):
        gr.Navbar(main_page_name="Chat")
        VotesPage(calls, pages)
    with pages.route("Compare", "/compare"):
        gr.Navbar(main_page_name="Chat")
        ComparePage(calls, pages)
    with pages.route("Operate", "/operate"):
        gr.Navbar(main_page_name="Chat")
        OperatePage(calls, pages)
    pages.queue(default_concurrency_limit=STREAMS)
    theme = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    # Gradio's own shades are under the contrast of 4.5 that WCAG asks of small text.
    theme.set(
        body_text_color_subdued="*neutral_600",
        block_info_text_color="*neutral_600",
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover_dark="*primary_800",
        button_cancel_background_fill="#b91c1c",
        button_cancel_background_fill_hover="#991b1b",
    )
    app = FastAPI(openapi_url=None)
    export.add_export(app, calls)
    css = CSS + "".join(part.CSS for part in (compare, circle, intervals, lineage, export))
    gr.mount_gradio_app(app, pages, "/", footer_links=[], run_history=False, ssr_mode=False, theme=theme, css=css)
    app.add_middleware(Door)
    return app


def serve(settings: ConsoleSettings) -> None:
    uvicorn.run(
        create_app(settings),
        host=settings.console_host,
        port=settings.console_port,
        log_level="warning",
        timeout_graceful_shutdown=2,  # an open page holds a connection for as long as it is open
    )
