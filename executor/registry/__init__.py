"""Registries and image layouts: references, credentials, the OCI distribution client, OCI layouts on disk.

``reference``: image references · ``auth``: credentials · ``config``: mirrors, certificates, insecure hosts ·
``client``: the operations (resolve, fetch, push …), built on ``transfer``, ``upload``, ``session`` and ``token`` ·
``layout`` and ``archive``: images as directories and tar files.
"""
