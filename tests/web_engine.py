"""A headless browser out of wheels: QtWebEngine loads a page, waits for an element, and prints the document.

python tests/web_engine.py URL ID [SECONDS]; the exit code is 1 when the element never came.
"""

import os
import sys


def main(url: str, element: str, seconds: float = 60) -> int:
    os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
    os.environ.setdefault("QTWEBENGINE_DISABLE_SANDBOX", "1")
    os.environ.setdefault("QTWEBENGINE_CHROMIUM_FLAGS", "--disable-gpu --host-resolver-rules='MAP * ~NOTFOUND'")
    from PyQt6.QtCore import QTimer, QUrl
    from PyQt6.QtWebEngineWidgets import QWebEngineView
    from PyQt6.QtWidgets import QApplication

    app = QApplication(sys.argv[:1])
    # Only a view that is shown draws frames, which scripts wait for.
    view = QWebEngineView()
    view.resize(1280, 900)
    view.show()

    def look() -> None:
        view.page().toHtml(seen)

    def seen(text: str) -> None:
        if f'id="{element}"' in text:
            sys.stdout.write(text)
            app.quit()
        else:
            QTimer.singleShot(100, look)

    view.loadFinished.connect(look)
    view.load(QUrl(url))
    QTimer.singleShot(int(seconds * 1000), lambda: app.exit(1))
    return app.exec()


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:3], *map(float, sys.argv[3:4])))
