"""See a photograph in a browser and serve a folder of them: IIIF Image API 3.0 over the upscaling.

`iiif` parses URLs, `shelf` finds and keeps photographs, `rendering` makes the pixels of a request, `queue` lets one
thread do so, `app` is the server, and `page/` is the zoom viewer. Needs `pip install 'liif-fast[view]'`.
"""
