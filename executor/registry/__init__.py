"""Registries and image layouts: references, credentials, the OCI distribution client, OCI layouts on disk.

``reference`` what users call images · ``auth`` credentials by registry · ``config`` mirrors, certificates, insecure
hosts · ``client`` the verbs (resolve, fetch, push …), built on ``transfer``, ``session`` and ``token`` ·
``layout`` and ``archive`` images as directories and tar files.
"""
