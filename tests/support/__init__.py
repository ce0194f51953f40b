"""What tests share: small models, stand-ins for processes, and slow but plain versions of what is tested."""
